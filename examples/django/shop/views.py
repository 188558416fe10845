"""The shop: an order is paid in a transaction, and its customer is notified if and only if that commits."""

from django.db import IntegrityError, connection, transaction
from django.db.models import F
from django.http import HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from shop.models import Customer, Order
from sio_pg_adapter import emit


@csrf_exempt
@require_POST
def place_order(request):
    with transaction.atomic():
        customer, _ = Customer.objects.get_or_create(name=request.GET["customer"])
        order = Order.objects.create(customer=customer, price=int(request.GET["price"]))
        emit(connection, "ordered", {"id": order.pk}, room=f"customer:{customer.name}")
    return JsonResponse({"id": order.pk}, status=201)


@csrf_exempt
@require_POST
def pay_order(request, number):
    try:
        with transaction.atomic():
            order = Order.objects.select_for_update().filter(pk=number, paid=False).first()
            if order is None:
                return HttpResponse("there is nothing to pay", status=409)
            order.paid = True
            order.save()
            emit(connection, "paid", {"id": number}, room=f"customer:{order.customer_id}")
            Customer.objects.filter(name=order.customer_id).update(credit=F("credit") - order.price)
    except IntegrityError:  # not enough credit: nothing is paid, and no event is sent
        return HttpResponse("not enough credit", status=402)
    return HttpResponse(status=204)
